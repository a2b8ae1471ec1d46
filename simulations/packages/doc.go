// Package packages installs the packages on a clean Debian that systemd has booted, uses
// them there, and takes them off again. It has tests alone.
package packages
