"""The page: Gradio components wired to plain functions."""
