"""The commands of `dymn`, one module each: options and help texts, one call into the library, the printing of its answer."""
