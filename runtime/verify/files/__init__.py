"""What a bundle's files hold, against the checkpoint and what convert writes."""
