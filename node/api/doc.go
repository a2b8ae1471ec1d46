// Package api is the node's HTTP interface: the routes of the contract, their
// OpenAPI description generated from the code, and the listeners they stand
// behind. It decides who may ask; what is done about it is package node's.
package api
