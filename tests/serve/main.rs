//! The server as clients meet it: started in this process, spoken to over HTTP.

mod answers;
mod bodies;
mod client;
mod limits;
mod load;
mod place;
mod sameness;
mod streams;
