"""What is done with sounds that are heard live: messages, files, webhooks, commands, MQTT, clips."""
