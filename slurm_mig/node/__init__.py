"""What is done to a node as a whole: opened, brought up, fenced, installed, verified."""
