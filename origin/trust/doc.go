// Package trust says who may do what. A mesh is a key pair; its private half
// signs certificates, each of which gives one member's key a role and a farm.
// Members sign records into an [Envelope]; a newcomer shows the invite of a
// join [Token] once and gets a certificate for it.
//
// What is signed is always the exact encoded bytes, behind a label that says
// what they are, so that a signature over one thing can never be shown as a
// signature over another.
package trust
