"""What Linux gives: trusted files, programs, services, clocks, and what its errors mean."""
