//! Sixteen lanes of `f32` on AVX-512, AVX2 and anything else, chosen once at run time.
