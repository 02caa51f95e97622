"""Actions on live sounds: messages, files, webhooks, programs, MQTT and saved clips."""
