//! instruct-train
