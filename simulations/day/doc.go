// Package day pastes what the README tells operators into real hosts: network and
// mount namespaces of this machine, with an S3 server, a unit of systemd's and a user
// of the node's own. It has tests alone.
package day
