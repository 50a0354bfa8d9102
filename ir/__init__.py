"""What a graph is: specs, annotations, points, sharing, stages, observers, snapshots."""
