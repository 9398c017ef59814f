//! instruct-model
