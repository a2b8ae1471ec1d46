# Completion of grange for bash: source <(grange completion bash)
_grange() {
  local cur=${COMP_WORDS[COMP_CWORD]} cword=$COMP_CWORD word
  local -a words=("${COMP_WORDS[@]}")
  if declare -F _get_comp_words_by_ref >/dev/null; then # of bash-completion: a name may have a colon
    _get_comp_words_by_ref -n =: cur words cword
  fi
  COMPREPLY=()
  while IFS=$'\t' read -r word _; do
    COMPREPLY+=("$word")
  done < <("${words[0]}" complete -- "${words[@]:1:cword}" 2>/dev/null)
  if declare -F __ltrim_colon_completions >/dev/null; then
    __ltrim_colon_completions "$cur"
  fi
}
complete -o bashdefault -o default -F _grange grange
