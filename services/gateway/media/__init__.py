"""Images, speech, transcriptions and videos in OpenAI's shape: jobs in, jobs waited for or handed on."""
