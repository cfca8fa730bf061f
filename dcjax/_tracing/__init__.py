"""Find the layout: trace the narrow and the global network side by side."""
