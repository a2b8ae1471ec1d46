package pack

// headerSize is the length of a pack's header, where its first frame begins.
const headerSize = 16
