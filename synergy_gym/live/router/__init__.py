"""What a router knows about live engines, and how it asks its policy."""
