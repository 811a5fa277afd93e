//! Libraries that speak C, each in three floors: what is declared, what it returns, what is safe.

pub mod libav;
