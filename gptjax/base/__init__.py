"""Errors, files, trees and the terminal, as any program could use. Imports nothing of gptjax."""
