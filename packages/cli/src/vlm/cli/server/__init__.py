"""An OpenAI-compatible server and its chat page (extra `serve`)."""
