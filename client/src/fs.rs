//! The path level: what the command line, gateways and other programs ask.
