"""What students are worth beside their reference, `student-train worth`: tasks, size, speed and what they cost."""
