//! instruct-eval
