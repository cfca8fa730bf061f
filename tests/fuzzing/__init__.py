"""What test_fuzz draws its calls from, and holds their results against."""
