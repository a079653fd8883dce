/**
 * Finds variables of the environment that are probably settings with a wrong name. Such a setting
 * has no effect, and nothing else would say so. Pure.
 */

export interface Misspelled {
  /** As the environment has it. */
  readonly name: string
  /** The setting that it is nearest to. */
  readonly setting: string
}

/** Letters that are wrong, missing or too many. Two that are exchanged count as two. */
const MAX_EDITS = 2
/** Shorter names are near to each other by chance. */
const MIN_LENGTH = 6

/** In the order of `names`. None of them is one of `settings`. */
export function misspelled(
  names: readonly string[],
  settings: readonly string[],
): readonly Misspelled[] {
  const known = new Set(settings)
  return names
    .filter((name) => name.length >= MIN_LENGTH && !known.has(name))
    .flatMap((name) => {
      const near = settings
        .filter((setting) => Math.abs(setting.length - name.length) <= MAX_EDITS)
        .map((setting) => ({ setting, edits: edits(name, setting) }))
        .sort((one, other) => one.edits - other.edits)[0]
      return near === undefined || near.edits > MAX_EDITS ? [] : [{ name, setting: near.setting }]
    })
}

/** The Levenshtein distance, by the algorithm of Wagner and Fischer with one row. */
function edits(one: string, other: string): number {
  let above = Array.from({ length: other.length + 1 }, (_, at) => at)
  for (let row = 1; row <= one.length; row += 1) {
    const current = [row]
    for (let at = 1; at <= other.length; at += 1) {
      const replaced = (above[at - 1] ?? 0) + (one[row - 1] === other[at - 1] ? 0 : 1)
      current.push(Math.min(replaced, (above[at] ?? 0) + 1, (current[at - 1] ?? 0) + 1))
    }
    above = current
  }
  return above.at(-1) ?? 0
}
