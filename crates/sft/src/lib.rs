//! instruct-sft
