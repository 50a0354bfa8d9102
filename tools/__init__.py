"""What people hold in their hands: the command line, the demo, and models to try things on."""
