//! What the fuzz targets call. The functions are tested on the committed inputs by the main workspace too.

pub use instruct_checks::entries;
