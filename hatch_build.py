"""The README for package indexes: relative links become links into the repository."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface


class ReadmeHook(MetadataHookInterface):
    """Set `project.readme`; hatchling calls it when it builds a distribution."""

    def update(self, metadata: dict) -> None:
        """Add the README to the metadata, with `project.urls.Repository` before relative links."""
        files = f"{metadata['urls']['Repository']}/raw/main/"
        pages = f"{metadata['urls']['Repository']}/blob/main/"
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        relative = r"(?![a-z]+:|#)"
        text = re.sub(rf'(!\[[^]]*\]\(|<img [^>]*src="){relative}', rf"\g<1>{files}", text)
        text = re.sub(rf"((?<!!)\[[^]]*\]\(){relative}", rf"\g<1>{pages}", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
