"""What is written of a board: page, HTML, pictures."""
