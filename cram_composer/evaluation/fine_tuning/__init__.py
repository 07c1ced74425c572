"""Fine-tuning on GLUE and SuperGLUE: tasks, jobs, results."""
