#compdef grange
# Completion of grange for zsh: source <(grange completion zsh), behind compinit
_grange() {
  local -a found
  local word help
  while IFS=$'\t' read -r word help; do
    found+=("${word//:/\\:}${help:+:$help}")
  done < <("${words[1]}" complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)
  if (( $#found )); then
    _describe grange found
  else
    _files
  fi
}
if [[ "${funcstack[1]}" == _grange ]]; then
  _grange "$@"
elif (( $+functions[compdef] )); then
  compdef _grange grange
fi
