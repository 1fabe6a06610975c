"""Answer one question with several settings of a model, streamed token by token, from a resident worker process."""
