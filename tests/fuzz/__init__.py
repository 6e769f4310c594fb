"""Bad input, everywhere: every case either works or ends in one clear line."""
