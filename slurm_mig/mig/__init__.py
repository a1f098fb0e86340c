"""What MIG is: profiles, geometries, placements, requests and plans."""
