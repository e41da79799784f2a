"""Every file and message that device, compiler and server read or write."""
