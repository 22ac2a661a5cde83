// A page of 20 KB, regenerated as the other subjects' page is.
import { LINES, SENTENCE } from '../text.mjs'
export default function Page() {
  return <main>{Array.from({ length: LINES }, (_, line) => <p key={line}>{SENTENCE.repeat(10)}</p>)}</main>
}

export async function getStaticProps() {
  return { props: {}, revalidate: 3600 }
}
