"""What no single module promises."""
