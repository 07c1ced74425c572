"""GLUE and SuperGLUE: tasks, fine-tuning jobs, results."""
