"""What any program has: errors, files, trees, a terminal. Imports nothing of gptjax."""
