"""Studies that anyone can run again: `make study-continuum`. No part of the installed package."""
