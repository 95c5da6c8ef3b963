//! Whole files: missing, swapped, cut, strayed; the mark and cursors.
