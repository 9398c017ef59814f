//! instruct-ppo
