//! Programs in other languages as workers.
