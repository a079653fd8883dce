/**
 * The kinds of settings in `settings.ts`. Each is a valibot schema that converts the text of a
 * variable to its value, with the text for the documentation as metadata. Pure: reads no
 * environment.
 */

import * as v from "valibot"

export interface SettingInfo {
  readonly default: string
  readonly range: string
  readonly text: string
  readonly secret: boolean
}

interface Declared {
  readonly text: string
  readonly secret?: boolean
  /** The default in the documentation, when the actual default depends on the machine. */
  readonly defaultText?: string
}

export function text(
  declared: Declared & {
    readonly default: string
    readonly match: RegExp | ((value: string) => boolean)
    readonly range: string
  },
) {
  const { match } = declared
  const matches = match instanceof RegExp ? (value: string) => match.test(value) : match
  return v.pipe(
    v.optional(v.string(), declared.default),
    v.check(matches, `must be ${declared.range}`),
    metadata(declared, declared.default, declared.range),
  )
}

export function integer(
  declared: Declared & {
    readonly default: number
    readonly min: number
    readonly max: number
    readonly unit?: string
  },
) {
  const { min, max } = declared
  const range = `${min} to ${max}${declared.unit ? ` ${declared.unit}` : ""}`
  const rule = `must be a whole number from ${range}`
  return v.pipe(
    v.optional(v.string(), String(declared.default)),
    v.check((value) => /^[0-9]{1,15}$/.test(value) && +value >= min && +value <= max, rule),
    v.transform(Number),
    metadata(declared, String(declared.default), range),
  )
}

/** A number that may have a fraction. */
export function decimal(
  declared: Declared & { readonly default: number; readonly min: number; readonly max: number },
) {
  const { min, max } = declared
  const range = `${min} to ${max}`
  return v.pipe(
    v.optional(v.string(), String(declared.default)),
    v.check(
      (value) => /^[0-9]+(\.[0-9]+)?$/.test(value) && +value >= min && +value <= max,
      `must be a number from ${range}`,
    ),
    v.transform(Number),
    metadata(declared, String(declared.default), range),
  )
}

export function choice<const Of extends readonly string[]>(
  declared: Declared & { readonly default: Of[number]; readonly of: Of },
) {
  const range = declared.of.join(", ")
  return v.pipe(
    v.optional(v.picklist(declared.of, `must be one of ${range}`), () => declared.default),
    metadata(declared, declared.default, range),
  )
}

/** Items separated by commas; empty by default. */
export function list(declared: Declared & { readonly match: RegExp; readonly range: string }) {
  return v.pipe(
    v.optional(v.string(), ""),
    // A value of commas only is a mistake. As a list of tokens it would give access to everybody.
    v.check((value) => value === "" || items(value).length > 0, "must not be set to nothing"),
    v.transform(items),
    v.checkItems((item) => declared.match.test(item), `each must be ${declared.range}`),
    metadata(declared, "", declared.range),
  )
}

/** Like `list`, with a function that checks each item. */
export function checkedList(
  declared: Declared & {
    /**
     * Returns the rule that the item violates, without any part of the item; null when it is valid.
     */
    readonly faultOf: (item: string) => string | null
    readonly range: string
  },
) {
  return v.pipe(
    v.optional(v.string(), ""),
    v.check((value) => value === "" || items(value).length > 0, "must not be set to nothing"),
    v.transform(items),
    eachItem("item", declared.faultOf),
    metadata(declared, "", declared.range),
  )
}

/** URLs, separated by `split`; empty by default. */
export function urls(
  declared: Declared & {
    readonly split: (value: string) => string[]
    /** Returns why the URL is not valid, without any part of the URL; null when it is valid. */
    readonly faultOf: (url: string) => string | null
    readonly range: string
  },
) {
  return v.pipe(
    v.optional(v.string(), ""),
    v.check(
      (value) => value === "" || declared.split(value).length > 0,
      "must not be set to nothing",
    ),
    v.transform(declared.split),
    eachItem("URL", declared.faultOf),
    metadata(declared, "", declared.range),
  )
}

/**
 * Adds an issue for each invalid item. The issue gives the position of the item, because the list
 * may be secret.
 */
function eachItem(noun: string, faultOf: (item: string) => string | null) {
  return v.rawCheck<string[]>(({ dataset, addIssue }) => {
    if (!dataset.typed) return
    const { length } = dataset.value
    for (const [index, item] of dataset.value.entries()) {
      const fault = faultOf(item)
      const which = length === 1 ? "" : `${noun} ${index + 1} of ${length} `
      if (fault !== null) addIssue({ message: `${which}${fault}` })
    }
  })
}

function items(value: string): string[] {
  const trimmed = value.split(",").map((item) => item.trim())
  return trimmed.filter((item) => item !== "")
}

function metadata<T>(declared: Declared, byDefault: string, range: string) {
  const info: SettingInfo = {
    default: declared.defaultText ?? byDefault,
    range,
    text: declared.text,
    secret: declared.secret ?? false,
  }
  return v.metadata<T, { info: SettingInfo }>({ info })
}

export function settingInfo(schema: v.GenericSchema): SettingInfo {
  return v.getMetadata(schema as never)["info"] as SettingInfo
}
