//! Matrix products on row-major slices.
