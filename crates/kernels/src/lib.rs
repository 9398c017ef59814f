//! instruct-kernels
