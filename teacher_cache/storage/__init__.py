"""Objects at a URL: put once, read patiently, kept on local disk. Nothing here knows what they hold."""
