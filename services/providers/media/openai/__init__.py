"""Images, speech, transcripts and videos as OpenAI makes them, and every server that speaks like it."""
