"""Speech, transcripts and cloned voices of ElevenLabs."""
