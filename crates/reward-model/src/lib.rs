//! instruct-reward-model
